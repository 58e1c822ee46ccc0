"""The vocabulary: values, commands and their arguments."""
