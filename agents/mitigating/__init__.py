"""Every mitigation, alone and on top of a mask and of methods: does choosing parameters add to them, and they to it?"""
