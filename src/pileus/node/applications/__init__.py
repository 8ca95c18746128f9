"""The role ``applications``: programs that a document names run in the appliance, with its users and registrations."""
