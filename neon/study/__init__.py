"Every method on every network: jobs, tables and figures."
