"""What users write and what the cluster says: policies, Kubernetes objects as projections, addresses."""
