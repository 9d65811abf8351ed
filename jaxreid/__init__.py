"""jaxreid: video person re-identification in JAX/Flax. Import the room that is needed, nothing is loaded here."""

__version__ = "0.1.0"
