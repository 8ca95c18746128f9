"""The appliance state table: a row for each monitor and appliance."""
