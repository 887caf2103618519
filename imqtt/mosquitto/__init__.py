"""Running and configuring Mosquitto: its files, accounts, log and limits."""
