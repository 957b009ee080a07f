"""The reports: everything here is drawn from `audit.result.Result` alone, without torch and without the model or the data."""
