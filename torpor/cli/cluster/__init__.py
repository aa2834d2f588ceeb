"""Commands on a cluster: render, examine, deploy, and what follows."""
