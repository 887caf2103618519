"""Small programs on the SDK. Each runs as `python -m imqtt.client.examples.<name> BROKER PASSWORD...`."""
