"""The dashboard: a web page that shows the runs of a coordinator as they happen, and what operators may do there."""
