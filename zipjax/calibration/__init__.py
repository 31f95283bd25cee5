"""After the merge: batch statistics, REPAIR, and layers refitted by least squares."""
