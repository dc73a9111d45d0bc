"The promise about the score, and what a method of compression is."
