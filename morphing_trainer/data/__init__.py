"""Text in, samples out, in an order that a cursor can stop and take up anywhere."""
