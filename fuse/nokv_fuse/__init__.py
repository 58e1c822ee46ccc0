"""The FUSE front end over nokv.client."""
