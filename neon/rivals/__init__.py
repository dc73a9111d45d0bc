"Other ways to a small network, behind the interface of every method."
