from onprem_mlops.engine.inventory import groups

globals().update(groups(__file__))
