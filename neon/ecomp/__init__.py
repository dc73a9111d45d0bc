"EComp as published, and evolution with units that correspond, weights that are solved for, and a front of sizes."
