"""Bridges to other libraries, none of which is a dependency; a bridge says what is missing when it is used."""
