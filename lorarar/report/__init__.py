"""Tables and figures of the results, with what they were made from."""
