"""The configuration: its typed schema (`schema`), composing it (`load`), and what no run can have (`rules`)."""
