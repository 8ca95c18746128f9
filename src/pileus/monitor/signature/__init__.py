"""A signature: rules that find malicious software, and how often appliances are looked at with them."""
