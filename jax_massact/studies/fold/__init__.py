"""`massact fold`."""
