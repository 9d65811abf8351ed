"""One stand-alone TFDS builder folder per data set; `jaxreid build NAME` prepares one."""
