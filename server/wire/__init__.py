"""The coordinator on the wire: the services that devices and operators call, sessions, transfers, TLS."""
