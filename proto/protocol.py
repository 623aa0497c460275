"""The number of the protocol, by which two versions of featherfed find out whether they fit.

A client tells the server its number when it joins, and gets the server's. Each side compares the
other's with the oldest that it speaks: a server refuses the client, a client leaves, and either
says which of the two must be updated. What one side need not know is no reason for a new number.
"""

PROTOCOL = 3
"""The number of this code; raised by one with each change that the other side must know of."""

OLDEST = 3
"""The oldest number of the other side that this code still works with."""
