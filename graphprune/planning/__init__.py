"""Planning: what a plan costs, how a budget is shared among groups, and the plan itself as data."""
