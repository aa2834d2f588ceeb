"""The Grafana dashboard and the Prometheus rules, generated from code.

`python -m knative.monitoring` writes both into docs/monitoring. Every broker and every api shows the same figures
of the same store, so gauges and ledger counters are taken by `max` over instances before anything is summed;
counters of single processes are summed.
"""
