"""Text in, fixed-length blocks out, in an order that a cursor can stop and take up anywhere."""
