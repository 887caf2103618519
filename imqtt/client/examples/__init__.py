"""Small programs that use the SDK: `python -m imqtt.client.examples.<name> BROKER PASSWORD...`."""
