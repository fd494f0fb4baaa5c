"""The methods: ways of making sub-models. Each fulfils the contract of `models.method`."""
