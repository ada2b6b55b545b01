"""What guards found, handed on: to other plugins, to junit's file and to CI."""
