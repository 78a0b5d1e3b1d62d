"""`massact quantize`."""
