"""`massact registers`."""
