"""The methods: PatchCore and FastFlow."""
