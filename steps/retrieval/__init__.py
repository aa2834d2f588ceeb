"""Files of vector stores: read, cut into chunks, indexed, searched, and put into a prompt as data."""
