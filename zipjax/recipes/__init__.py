"""A recipe is a matcher, a similarity and a schedule: match and merge, and searches."""
