"What the commands of `neon` do; each module is imported when its command is named."
