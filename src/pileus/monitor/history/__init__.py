"""The history of a monitor: its state table and its actions, in a database outside the cloud that the customer names."""
