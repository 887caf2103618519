"""A busy machine makes an example slow now and then; that is no failure of a law."""

from hypothesis import settings

settings.register_profile("imqtt", deadline=None)
settings.load_profile("imqtt")
