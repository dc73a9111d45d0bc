"Seeds, data, networks, training, surgery, tables and the style of figures: what everything else stands on."
