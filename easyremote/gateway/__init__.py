"""The gateway: authenticates, places and relays calls; it never unpickles anything."""
