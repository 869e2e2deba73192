"""The mathematics: functions of arrays that know nothing of files, configs or models."""
