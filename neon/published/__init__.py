"NEON as published: what the agent sees, is paid, does and learns; its runs and the original's files."
