"""What is compared to prove a result, and how: outputs and inner values, each against what rounding can explain."""
