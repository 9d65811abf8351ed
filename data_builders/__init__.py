"""One stand-alone TFDS builder folder per data set; `python -m jaxreid.data.build NAME` prepares one."""
