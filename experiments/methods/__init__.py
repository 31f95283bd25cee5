"""The methods in the rows of the tables, and how they merge networks."""
