"Planning, the shipped planner, the search for tiny networks, and files to take away."
