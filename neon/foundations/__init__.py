"Seeds, data, networks, training, surgery, tables and figures: what everything else stands on."
