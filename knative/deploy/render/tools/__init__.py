"""Tools on a cluster: their queues and files, and the pods of those that are deployed."""
