"""The vocabulary: values, commands, results, reads, events and the limits they keep."""
