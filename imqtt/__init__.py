"""Instant messaging on an MQTT broker."""
