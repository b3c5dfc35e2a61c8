"""The gateway image: HTTP in front of every registered application."""
